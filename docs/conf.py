"""Sphinx settings. The sources are the pages of ``docs/``, the notebooks and the reports where they lie."""

import inspect
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import riemann_optax

project = "riemann_optax"
author = "The riemann_optax authors"
copyright = author
version = release = riemann_optax.__version__

root_doc = "docs/index"
include_patterns = [
    *("docs/*.md", "docs/recipes/*.md", "docs/api/*", "notebooks/*.ipynb"),
    *("benchmarks/REPORT.md", "benchmarks/TABLES.md", "tests/TRUST.md"),
    *("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"),
]
exclude_patterns = ["site", "build", "dist", "runs", ".*", "**/.*"]
extensions = [
    *("sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb", "sphinx_copybutton", "sphinx_design"),
    *("mathml", "strict"),  # in this folder
]
nitpicky = True

autodoc_typehints = "none"  # the docstrings say what each argument may be
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autoclass_content = "class"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_param = True
napoleon_use_ivar = True
napoleon_attr_annotations = False
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the outputs are committed; pytest --nbmake runs them
nb_merge_streams = True
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "riemann_optax"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "source_repository": "",
    "light_css_variables": {"color-brand-primary": "#0b5394", "color-brand-content": "#0b5394"},
    "dark_css_variables": {"color-brand-primary": "#8ab8f0", "color-brand-content": "#8ab8f0"},
}
pygments_style = "tango"
pygments_dark_style = "monokai"


def fields_without_types(app, what, name, obj, options, signature, arguments):
    if what != "class" or not hasattr(obj, "_fields"):
        return ("", None) if getattr(obj, "_is_protocol", False) else None
    empty, made = inspect.Signature.empty, inspect.signature(obj)
    parameters = [parameter.replace(annotation=empty) for parameter in made.parameters.values()]
    return str(made.replace(parameters=parameters, return_annotation=empty)), None


def setup(app):
    app.connect("autodoc-process-signature", fields_without_types)
