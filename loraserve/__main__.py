from loraserve.operator.cli import main

raise SystemExit(main())
