// Runs tests of http-cache-tests and prints their results as JSON: true, or [category, message], by test.
//
//   node run.mjs SUITE BASE [ID...]
//
// SUITE: the suite's directory. BASE: the cache's URL. Without an ID: all tests.
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'

const [dir, base, ...ids] = process.argv.slice(2)
const load = file => import(pathToFileURL(`${dir}/${file}`))
const fetch = createRequire(`${dir}/package.json`)('node-fetch')
const { runTests, getResults } = await load('client/runner.mjs')
const suites = [...(await load('tests/index.mjs')).default, (await load('tests/surrogate-control.mjs')).default]
const wanted = suites.map(suite => ({
  ...suite,
  tests: suite.tests.filter(test => ids.length === 0 || ids.includes(test.id))
}))
// The suite's own lines, of what it sends twice, are not results.
console.log = console.error
await runTests(wanted, fetch, false, base)
process.stdout.write(JSON.stringify(getResults()))
