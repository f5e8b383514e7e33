"""Encoders: rows with fields, models that classify, embed or find spans, and their place around the one step.
`SOURCES` are the kinds of rows a recipe names, `BODIES` what lies under a head."""

from edgeslm.encoders import bilstm, pixels, rows, transformer

SOURCES = {"table": rows.table, "sentences": rows.sentences, "cloze": rows.cloze, "questions": rows.questions}
BODIES = {"bert": transformer.BertBody, "bilstm": bilstm.BiLstmBody, "pixels": pixels.PixelBody}
