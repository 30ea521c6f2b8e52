// Carries out one message after the other in one context, and prints the value of each.
const vm = require('node:vm')
const util = require('node:util')
globalThis.require = require
let interrupt = () => {}
process.on('SIGINT', () => interrupt())
process.on('uncaughtException', (error) => console.error(error))
async function carryOut(text) {
  try {
    let value = vm.runInThisContext(text, { filename: 'message', breakOnSigint: true })
    if (value && typeof value.then === 'function') {
      const interrupted = new Promise((_, reject) => { interrupt = () => reject({ code: 'ERR_SCRIPT_EXECUTION_INTERRUPTED' }) })
      value = await Promise.race([value, interrupted])
    }
    if (value !== undefined) console.log(typeof value === 'string' ? value : util.inspect(value))
    return 0
  } catch (error) {
    if (error?.code === 'ERR_SCRIPT_EXECUTION_INTERRUPTED') return 130
    console.error(error)
    return 1
  }
}
(async () => {
  let rest = Buffer.alloc(0), marker
  for await (const piece of process.stdin) {
    rest = Buffer.concat([rest, piece])
    for (let end; (end = rest.indexOf(0)) >= 0;) {
      const part = rest.subarray(0, end).toString()
      rest = rest.subarray(end + 1)
      if (marker === undefined) { marker = part; continue }
      const status = await carryOut(part)
      process.stdout.write(`${marker}${status}\n`)
      marker = undefined
    }
  }
  process.exit(0)
})()
