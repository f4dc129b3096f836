"""Split a GGUF file, as llama.cpp's gguf-split does. Runs with the engine environment's Python.

`python split_gguf.py FILE STEM` writes `STEM-00001-of-0000N.gguf` and so on, with at most ten tensors each.
"""

import sys
from pathlib import Path

import gguf


def main() -> None:
    source, stem = Path(sys.argv[1]), Path(sys.argv[2])
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(stem.with_name(f"{stem.name}.gguf"), architecture, split_max_tensors=10)
    for name, field in reader.fields.items():
        if name == "general.architecture" or name.startswith("GGUF."):
            continue
        kind, sub = field.types[0], field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), kind, sub_type=sub)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
