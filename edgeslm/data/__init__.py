"""What students read. A source kind is a file that turns paths and a tokenizer into documents of token ids; `written`
also needs the teacher."""

from edgeslm.data import chat, text

DOCUMENTS = {"text": text.documents, "chat": chat.documents}
