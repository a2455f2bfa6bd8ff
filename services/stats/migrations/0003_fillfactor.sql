-- Room for the next row beside each, so that no index learns of it.
ALTER TABLE key_calls SET (fillfactor = 50);
