# Carries out one message after the other in one shell. Each is a marker and a text, with a NUL after each. Ctrl-C ends what
# is carried out, and not the shell: the trap makes each further command of it return (extdebug).
__ar_abort() { [ "${#FUNCNAME[@]}" -le 1 ] || return 2; }
trap '__ar_interrupted=1; shopt -s extdebug; trap __ar_abort DEBUG' INT
exec 7>&1 9<&0 </dev/null
while IFS= read -r -d '' -u 9 __ar_marker && IFS= read -r -d '' -u 9 __ar_text; do
  trap - DEBUG; shopt -u extdebug; __ar_interrupted=
  source /dev/fd/8 8< <(printf %s "$__ar_text") 9<&- 7>&-
  __ar_status=$?
  trap - DEBUG; shopt -u extdebug
  [ -z "$__ar_interrupted" ] || __ar_status=130
  printf '%s%d\n' "$__ar_marker" "$__ar_status" >&7
done
