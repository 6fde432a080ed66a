"""Rows become token ids with loss weights: render once, prove the masks, tokenise, pack, show. No torch here."""
