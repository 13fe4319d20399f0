"""Data that ships: `profiles/` and `lut/` of the repository are installed as subpackages of this one."""
