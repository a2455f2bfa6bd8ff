"""What other programs may rely on, as documents: the HTTP API (OpenAPI) and the topics (AsyncAPI), made from the code."""
