"""The HTTP faces: one FastAPI application per NIM, and one for the API catalog."""
