"""Sphinx: what the pages are made of. ``nox -s docs`` builds them, without a network."""

import os
from pathlib import Path

import gpuopt

os.environ["GPUOPT_REPORT"] = "0"
ROOT = Path(__file__).parent

project = "gpuopt"
author = "The gpuopt developers"
copyright = "The gpuopt developers"
version = release = gpuopt.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery/*.md", "gallery/README.rst"]
default_role = "any"
suppress_warnings = ["config.cache", "myst.header", "myst.xref_missing", "ref.any", "ref.ref"]
nitpicky = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_typehints = "none"
autodoc_type_aliases = {"Hyper": "gpuopt.Hyper"}
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

sphinx_gallery_conf = {
    "examples_dirs": [str(ROOT / "gallery")],
    "gallery_dirs": ["auto_gallery"],
    "filename_pattern": r"\.py$",
    "image_scrapers": ("matplotlib",),
    "matplotlib_animations": False,
    "doc_module": ("gpuopt",),
    "reference_url": {"gpuopt": None},
    "download_all_examples": False,
    "show_memory": False,
    "capture_repr": (),
    "write_computation_times": False,
    "show_signature": False,
    "min_reported_time": 1,
    "abort_on_example_error": True,
}

templates_path = ["_templates"]
html_theme = "pydata_sphinx_theme"
html_title = f"gpuopt {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sourcelink = False
html_theme_options = {
    "navbar_align": "left",
    "show_prev_next": False,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "header_links_before_dropdown": 6,
}
