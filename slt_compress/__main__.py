"""`python -m slt_compress`, so that `accelerate launch -m slt_compress search …` works."""

from __future__ import annotations

from slt_compress.cli import main

if __name__ == "__main__":
    main()
