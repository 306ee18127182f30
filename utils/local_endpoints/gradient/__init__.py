"""A local server with the API of Gradient AI, which really trains LoRA adapters.

The service of that name closed in 2024; its client `gradientai` 1.13.1 and the Haystack components
of `gradient-haystack` work against this server unchanged. `app.build_app` builds it, and
`store.AdapterStore` keeps its adapters; nothing is imported here, so that the process that trains
(`worker`) loads no web server.
"""
