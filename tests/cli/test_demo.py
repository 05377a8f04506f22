"""`vqgan demo` before there is a page; `test_demo_browser.py` clicks through it."""

import sys

from vqgan_jax.__main__ import main


def test_without_its_package_it_says_what_to_install(monkeypatch, capsys):
    for variable in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(variable, "")  # the verb sets them
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "vqgan_jax.demo.app", raising=False)
    assert main(["demo", "--workdir=nowhere"]) == 1
    assert "needs gradio: `pip install 'vqgan-jax[demo]'`" in capsys.readouterr().err
