"""Sockets: how clients are connected. Plain ASGI in front of FastAPI, and callback sessions instead of
tasks.
"""
