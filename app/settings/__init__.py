"""How settings are parsed and checked. `config.py` lists them."""
