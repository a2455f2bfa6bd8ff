"""Requests and answers that try to mean two things, as data: `*.toml` say what each must come to, `corpus` reads them.

They are sent to a real edge before real servers (`tests/integration/edge/test_attack.py`), and are where fuzzing begins
(`tests/fuzz`).
"""
