"""Studies that ship with the package: `bert-fast compare smoke --out=runs/smoke`."""
