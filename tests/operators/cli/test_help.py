"""The command itself."""

import subprocess
import sys


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['mergeflow', '--help']\n"
        "from operators import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print({*sys.modules} & {'torch', 'transformers', 'mlflow', 'lm_eval', 'airflow', 'boto3', 'huggingface_hub'})"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "set()"
    assert "check" in shown
