"""Small data sets in the published formats, drawn by code: file names, nesting and fields as in the originals."""
