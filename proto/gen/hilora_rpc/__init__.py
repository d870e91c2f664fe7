"""Generated messages and services; the sources are in proto/hilora_rpc."""
