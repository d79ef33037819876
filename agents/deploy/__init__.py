from agents.deploy.contrib import to_sb3_zip as to_sb3_zip
