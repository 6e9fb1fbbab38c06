"""The four verbs: a typed request in, a typed result out. Nothing here prints or exits."""
