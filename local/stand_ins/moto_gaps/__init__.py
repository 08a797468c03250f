"""What moto 5.2.5 lacks of AWS for this program, added inside its server so that any AWS client sees it."""
