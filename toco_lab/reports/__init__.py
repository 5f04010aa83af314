"""Look back: runs compared, ablation tables, one offline page."""
