"""FCP: foreground-covering prototype generation and matching for SAM-aided few-shot segmentation (AAAI 2025)."""
