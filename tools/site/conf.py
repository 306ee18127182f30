"""Sphinx's configuration of the site; `tools/build_site.py` writes the sources and calls it."""

project = "NIM RAG Cookbook"
author = "The NIM RAG Cookbook's contributors"
copyright = "the contributors; code Apache-2.0, data CC0"
language = "en"
extensions = ["myst_nb"]
templates_path = ["templates"]

nb_execution_mode = "off"  # the stored outputs are what is shown
myst_enable_extensions = ["html_image"]  # a picture written as HTML keeps its alt text and width
myst_heading_anchors = 4

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["static"]
html_favicon = "static/favicon.svg"
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system is
html_css_files = ["site.css"]
html_copy_source = False
html_use_index = False  # there are no terms to list
html_theme_options = {
    "repository_branch": "main",
    "use_repository_button": True,
    "use_download_button": False,
    "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    "show_toc_level": 2,
    # Seven and more to one on their backgrounds.
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
