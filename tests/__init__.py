"""The tests; a package, because one of Chainlit's dependencies installs another of this name."""
