"""One safetensors file: header, dtypes, reading and writing its bytes, checksums."""
