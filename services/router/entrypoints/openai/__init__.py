"""OpenAI's routes: what may be asked, how it is answered."""
