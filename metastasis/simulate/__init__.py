"""Synthetic patients with metastases and prior scans."""
