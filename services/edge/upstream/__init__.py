"""Connections to upstreams: how one request goes over one (`connection`), and who gets which (`pool`)."""
