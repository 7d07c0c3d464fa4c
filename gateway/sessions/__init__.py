"""Conversations that the gateway keeps: a chat request that names one is answered with it in front."""
