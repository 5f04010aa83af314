"""Click and slide: three widgets, and the parts of them that work without one.

CAM explorer, where does the model see a class?
    `cam_explorer` (reactions) on `cam_controls` (controls, settings) and `cam_panels` (views as panels);
    `cam_session` (one model, one image, many questions) on `session_image`; `cam_runs`, `uploads`;
    `attribution` names the maps of `toco_lab.attribution`; `panels` composes rows of panels as pixels.
Token explorer, how alike are the tokens?
    `token_explorer` (the widget) and `token_page` (offline pages) with static/token_explorer.js; `browser_data` packs
    the tokens that a run has kept (`toco_lab.tokens`).
Run browser: `run_browser`. What the widgets share: `controls`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
