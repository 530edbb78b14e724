"""The papers' tables, made on the user's base model and people, beside the published figures."""
