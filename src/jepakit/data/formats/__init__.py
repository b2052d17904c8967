"""How bytes lie: folders, tars, Parquet, Arrow, arrays, packs; here or afar."""
