// A provider of OpenID Connect: `node oidc_provider.mjs PORT REDIRECT_URI PEOPLE`. PEOPLE is a JSON file, read at each sign-in:
// {NAME: {groups, sites}}.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';
const [port, redirect, people] = process.argv.slice(2);
const home = new URL('/', redirect).href;
const place = createRequire(`${process.env.NODE_PATH}/`).resolve('oidc-provider');
const { Provider } = await import(pathToFileURL(place));
const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [{
    client_id: 'linewarden', client_secret: 'of the test', redirect_uris: [redirect], post_logout_redirect_uris: [home],
    id_token_signed_response_alg: 'RS256',
  }],
  conformIdTokenClaims: false,
  claims: { openid: ['sub', 'groups', 'sites', 'preferred_username', 'name'] },
  pkce: { required: () => true },
  findAccount: (_, id) => {
    const { groups, sites } = JSON.parse(readFileSync(people))[id];
    return { accountId: id, claims: () => ({ sub: id, preferred_username: id, name: `${id} of the plant`, groups, sites }) };
  },
});
provider.listen(Number(port), '127.0.0.1', () => console.log('READY'));
