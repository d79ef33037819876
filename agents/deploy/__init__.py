"""Acting with a saved agent, and writing it in the forms that others read."""

from agents.deploy.contrib import to_sb3_zip as to_sb3_zip
from agents.deploy.exports import export as export
