"""Without anndata the import works, and reading a file says what to install."""

import subprocess
import sys


def test_one_line_says_what_to_install():
    code = (
        "import sys\n"
        "sys.modules['anndata'] = None\n"
        "import pyro_tbr as tbr\n"
        "try:\n"
        "    tbr.from_anndata('cells.h5ad', env='type')\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "reading h5ad files needs anndata: pip install pyro-tbr[anndata]"
