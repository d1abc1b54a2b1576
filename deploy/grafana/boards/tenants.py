"""Who asks for how much."""

from panels import Dashboard, Panel

from boards.queries import TRACK, rate

TENANT = f'{TRACK},tenant=~"$tenant"'
FAILED = f'{TENANT},outcome="failed"'
USED = f'{TENANT},kind=~"prompt|output"'


def _tenants(title: str, unit: str, query: str, help_: str) -> Panel:
    return Panel(title, unit, {"{{tenant}}": query}, help_, conditional=True)


def _tokens(kind: str) -> str:
    return rate("baton_tenant_tokens_total", f'{TENANT},kind="{kind}"', "tenant")


TENANTS = Dashboard(
    "baton-tenants",
    "Baton: tenants",
    {
        "By the name of their key": (
            _tenants("Output tokens/s", "short", _tokens("output"), "What decode nodes work for"),
            _tenants("Prompt tokens/s", "short", _tokens("prompt"), "Those found in the cache are in it"),
            _tenants(
                "Prompt tokens not cached/s",
                "short",
                f"{_tokens('prompt')} - {_tokens('cached')}",
                "What prefill nodes work for",
            ),
            _tenants(
                "Requests/s", "reqps", rate("baton_tenant_requests_total", TENANT, "tenant"), "Served and failed ones"
            ),
            _tenants(
                "Failed",
                "percentunit",
                f"{rate('baton_tenant_requests_total', FAILED, 'tenant')} / "
                f"clamp_min({rate('baton_tenant_requests_total', TENANT, 'tenant')}, 1e-9)",
                "Of a tenant's own requests",
            ),
            _tenants(
                "Tokens within a day",
                "short",
                f"sum by (tenant) (increase(baton_tenant_tokens_total{{{USED}}}[24h]))",
                "What a bill would be made of",
            ),
        ),
    },
    {"track": "baton_build_info, track", "tenant": "baton_tenant_requests_total, tenant"},
)
