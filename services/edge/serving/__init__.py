"""A serving process: clients' connections, what becomes of each request, its record, and its answer."""
