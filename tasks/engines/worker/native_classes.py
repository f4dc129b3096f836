"""Whether Transformers has classes of its own for a type of model. Runs inside the engine's environment.

`python -I native_classes.py MODEL_TYPE` prints `{"native": true}` or `{"native": false}`. No model is loaded.
"""

import json
import sys

from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

if __name__ == "__main__":
    print(json.dumps({"native": sys.argv[1] in CONFIG_MAPPING_NAMES}))
