"""NIM-compatible servers on loopback, in front of small real models. Notebooks never import it."""

import nim_cookbook  # noqa: F401  switches off what libraries report about their use
