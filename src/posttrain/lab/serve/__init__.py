"""A model as an OpenAI-compatible endpoint: what a body asks (`form`), the routes and who may use them (`app`), the process (`process`)."""
