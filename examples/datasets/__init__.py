"""Recordings as minibatches.

japanese_vowels   nine speakers
plaid             eleven kinds of household appliances
"""
