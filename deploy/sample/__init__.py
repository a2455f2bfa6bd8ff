"""A sample for the first hour: an upstream that echoes, and clients that call it through the edge as in daily life."""
