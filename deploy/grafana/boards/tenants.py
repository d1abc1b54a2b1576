"""The dashboard of tenants: how much each one uses."""

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
        "By name of the API key": (
            _tenants("Output tokens/s", "short", _tokens("output"), "Tokens generated for this tenant"),
            _tenants(
                "Prompt tokens/s",
                "short",
                _tokens("prompt"),
                "Prompt tokens of this tenant, including those found in the cache",
            ),
            _tenants(
                "Prompt tokens not cached/s",
                "short",
                f"{_tokens('prompt')} - {_tokens('cached')}",
                "Tokens that had to be computed",
            ),
            _tenants(
                "Requests/s",
                "reqps",
                rate("baton_tenant_requests_total", TENANT, "tenant"),
                "All requests of this tenant, including failed ones",
            ),
            _tenants(
                "Failed requests",
                "percentunit",
                f"{rate('baton_tenant_requests_total', FAILED, 'tenant')} / "
                f"clamp_min({rate('baton_tenant_requests_total', TENANT, 'tenant')}, 1e-9)",
                "Share of the tenant's own requests",
            ),
            _tenants(
                "Tokens in 24 hours",
                "short",
                f"sum by (tenant) (increase(baton_tenant_tokens_total{{{USED}}}[24h]))",
                "Prompt and output tokens of the last 24 hours, for billing",
            ),
        ),
    },
    {"track": "baton_build_info, track", "tenant": "baton_tenant_requests_total, tenant"},
)
