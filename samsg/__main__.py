from samsg.cli import main

main()
