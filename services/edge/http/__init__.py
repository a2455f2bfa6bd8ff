"""HTTP/1.1 as bytes in, bytes out: heads, header fields, bodies and paths, read strictly and written anew. No I/O, no clock."""
