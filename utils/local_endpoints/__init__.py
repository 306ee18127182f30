"""NIM-compatible servers on loopback, in front of small real models. Notebooks never import it."""
